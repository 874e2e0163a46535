# The worker for Ascend NPUs.  Not built by us: CANN's images are behind an agreement with their vendor.
#
#   docker build -f images/ascend.Dockerfile --build-arg CANN_IMAGE=... -t registry.example/belay-worker-ascend:0.1.0 .
#
# CANN_IMAGE is an image with CANN's runtime, operators (those of your chip) and HCCL on a glibc distribution; the toolkit and
# Python are not needed.  The driver is never part of an image: it is that of the node, mounted.
# Its glibc must not be newer than that of the CANN image: a program runs on its own or a newer one.
ARG BUILD_IMAGE=rust:1.95.0-bullseye
ARG CANN_IMAGE
FROM ${BUILD_IMAGE} AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked -p belay-worker && \
    install -D target/release/belay-worker /out/belay-worker

FROM ${CANN_IMAGE}
LABEL org.opencontainers.image.title=belay-worker-ascend \
      org.opencontainers.image.source=https://github.com/belay-dev/belay \
      org.opencontainers.image.licenses=Apache-2.0
USER 0
# HCCL asks for the name of its user.  The operator runs pods as 65532, and adds the group that owns the device files.
RUN echo 'belay:x:65532:' >> /etc/group && \
    echo 'belay:x:65532:65532::/home/belay:/sbin/nologin' >> /etc/passwd && \
    install -d -o 65532 -g 65532 /home/belay
COPY --from=build /out/belay-worker /usr/local/bin/belay-worker
# CANN's own, then what is mounted from the node.  ASCEND_VISIBLE_DEVICES and the like belong to the runtime, never to an image.
ENV ASCEND_HOME_PATH=/usr/local/Ascend/cann \
    ASCEND_OPP_PATH=/usr/local/Ascend/cann/opp \
    LD_LIBRARY_PATH=/usr/local/Ascend/cann/lib64:/usr/local/Ascend/driver/lib64:/usr/local/Ascend/driver/lib64/common:/usr/local/Ascend/driver/lib64/driver \
    BELAY_DEVICE=Ascend
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/belay-worker"]
