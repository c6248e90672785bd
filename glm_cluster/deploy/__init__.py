"""The only importer of ray: deployments, routing, migration."""
