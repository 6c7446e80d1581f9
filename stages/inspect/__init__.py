"""What was decided about a sample's views, for people: contact sheets and agreement."""
