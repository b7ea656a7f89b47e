"""From data to a model: data sources, components, cached steps, and the runners that carry heavy work."""
