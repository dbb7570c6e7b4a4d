"""Many runs on one shared folder: jobs, claims, processes, tables."""
