"""What people say of a run's images: decisions, the samples they are asked about, and what follows."""
