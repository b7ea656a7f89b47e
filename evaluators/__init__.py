"""Has the world changed? Is it good? Is it better? Measuring live traffic, judging candidates, comparing versions."""
