"""Reading shards: a split's images by address, their views and centre crops, and the data workers."""
