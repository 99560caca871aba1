"""A recipe: one YAML file that states a whole study."""
