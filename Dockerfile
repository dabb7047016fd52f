# For machines with a container engine; `make images` makes the same without one.
#   docker build --target cairn -t cairn.test/cairn:0.1.0 .
#   docker build --target cairn-operator -t cairn.test/cairn-operator:0.1.0 .
FROM docker.io/library/rust:1.95-bookworm AS build
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends g++ libclang-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# The cache holds RocksDB, the longest part of the build.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/target \
    CARGO_TARGET_DIR=/target cargo build --locked --release --workspace --all-features --bins && \
    install -D /target/release/cairn /out/cairn && install -D /target/release/cairn-operator /out/cairn-operator

FROM docker.io/library/debian:bookworm-slim AS base
RUN echo "nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin" >> /etc/passwd && echo "nonroot:x:65532:" >> /etc/group
USER 65532:65532

FROM base AS cairn-operator
COPY --from=build /out/cairn-operator /usr/local/bin/cairn-operator
ENTRYPOINT ["/usr/local/bin/cairn-operator"]

FROM base AS cairn
COPY --from=build /out/cairn /usr/local/bin/cairn
USER root
RUN ln -s cairn /usr/local/bin/etcd
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/cairn"]
