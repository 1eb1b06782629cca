"""Requests to be forgotten: from the file that says who asks, to the certificate that says it was done."""
