"""Many runs: papers planned and judged, jobs on Ray."""
