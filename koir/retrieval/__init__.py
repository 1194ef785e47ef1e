"""First stages: from a query to candidate documents."""
