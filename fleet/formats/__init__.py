"""How times are written where no template says otherwise."""
