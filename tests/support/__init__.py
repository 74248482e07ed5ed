"""What several tests share: servers, models, graphs and files that they make for themselves."""
