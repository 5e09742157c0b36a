"""Program that trains a drafter: prompt and mask tokens with which a frozen decoder writes several tokens a pass."""
