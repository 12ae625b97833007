"""IBM hardware: every circuit costs queue time and money, so nothing paid for is lost, and nothing is paid twice."""
