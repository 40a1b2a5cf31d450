"""Expert load at the operator's side: read, recorded, shown, drawn."""
