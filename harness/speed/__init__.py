"""This project's own speed, part by part, for `make bench`: each measures its variants in turn, side by side."""
