"""What reading a site's equipment costs."""
