"""The embedded zoo: small networks trained on the embedded digits, and how to rebuild them."""
