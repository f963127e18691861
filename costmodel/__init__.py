"""Features of tile programs and the models that rank schedules by them."""
