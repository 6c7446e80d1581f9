"""timm classifiers: student and teacher, where weights come from, and export."""
