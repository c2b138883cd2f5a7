"""The same work under several methods: trained, measured and reported side by side."""
