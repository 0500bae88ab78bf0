"""Pictures: loss by round, and how a model's experts are doing. The only importer of matplotlib."""
