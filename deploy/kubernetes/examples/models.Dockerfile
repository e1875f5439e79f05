# A repository as an image: for an image volume, an init container, and KServe's modelcar,
# the last two of which need a shell.
#
#   docker build --file deploy/kubernetes/examples/models.Dockerfile --tag foveate-models:0.1.0 demo-output/repository
FROM busybox:1.37
COPY --chown=10001:10001 . /models
USER 10001:10001
