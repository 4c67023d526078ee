"""The fast engine: the numbers of Captum, or of the paper's equations, at the price of a few forward passes."""
