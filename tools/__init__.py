"""What a maintainer or an instructor runs: measuring, drawing, a class on one server, grading."""
