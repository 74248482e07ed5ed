"""What a labelling task and an answer to it may be, for the server and the client's fake. Imports protobuf alone."""
