"""What several tests share: a tiny world, a cluster, a proxy."""
