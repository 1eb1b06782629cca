"""From score tables to one page: estimates with intervals, figures, a gallery and the page itself."""
