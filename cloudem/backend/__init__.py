"""Where arrays live and which twin of a kernel runs."""
