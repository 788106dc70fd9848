"""`python -m balancer`, as job schedulers start it."""

from balancer.cli import main

if __name__ == "__main__":
    main(prog_name="balancer")
