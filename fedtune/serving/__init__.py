"""What a coordinator and a node are made of: applications in threads, processes kept alive."""
