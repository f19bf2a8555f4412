"""What a student learns of its teacher: one base, a loss for each form."""
