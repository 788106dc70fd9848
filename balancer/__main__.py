"""`python -m balancer`, for job schedulers."""

from balancer.cli import main

if __name__ == "__main__":
    main(prog_name="balancer")
