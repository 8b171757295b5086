"""What is in the simulated sky, and drawing it; torch and numpy alone are needed here."""
