"""What is attacked: changes inside surrogates, and builders that make more surrogates."""
