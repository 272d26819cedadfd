"""One page that shows what an output holds."""
