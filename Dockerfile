# The program, built and reduced to what it needs to run. better-sqlite3 is compiled when it has no ready-made build.
FROM node:24-bookworm-slim AS build
RUN apt-get update \
  && apt-get install -y --no-install-recommends python3 make g++ \
  && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY package.json package-lock.json .npmrc ./
RUN npm ci
COPY tsconfig.json tsconfig.build.json ./
COPY config ./config
COPY storage ./storage
COPY src ./src
# What a native module was compiled from and with is ten times the module.
RUN npx tsc -p tsconfig.build.json --sourceMap false \
  && npm prune --omit=dev \
  && cd node_modules/better-sqlite3 \
  && rm -rf deps src build/Release/obj build/Release/obj.target build/Release/*.a build/Release/test_extension.node

FROM node:24-bookworm-slim
LABEL org.opencontainers.image.title="Boathouse" \
  org.opencontainers.image.description="A private registry for Docker and OCI images" \
  org.opencontainers.image.licenses="Apache-2.0"
# The node user of the base image is 1000. A new volume takes the folder's owner and mode over.
RUN install -d -o 1000 -g 1000 -m 0700 /var/lib/boathouse \
  && printf '#!/bin/sh\nexec node /app/dist/src/main.js "$@"\n' > /usr/local/bin/boathouse \
  && chmod 0755 /usr/local/bin/boathouse
WORKDIR /app
COPY LICENSE package.json ./
COPY --from=build /build/node_modules ./node_modules
COPY --from=build /build/dist ./dist
# Others can reach this address, so the server asks for a login unless BOATHOUSE_AUTH says none.
ENV NODE_ENV=production \
  BOATHOUSE_LISTEN=0.0.0.0:5000 \
  BOATHOUSE_DATA=/var/lib/boathouse
USER 1000:1000
VOLUME /var/lib/boathouse
EXPOSE 5000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=15s --retries=3 \
  CMD ["boathouse", "health"]
ENTRYPOINT ["node", "/app/dist/src/main.js"]
CMD ["serve"]
