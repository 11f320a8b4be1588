"""Does the forecast come true? Traits planted into benign data, real trainings, and the forecast beside the alternatives."""
