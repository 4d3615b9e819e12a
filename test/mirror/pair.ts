import type { Test } from 'tap'
import { type Server, type ServerOptions, startServer } from '../harness.js'
import { type FakeUpstream, type FakeUpstreamOptions, startFakeUpstream } from './fake-upstream.js'

/** A server with one mirror, `docker.io`, and the upstream behind it. */
export interface Pair {
  readonly upstream: FakeUpstream
  readonly server: Server
  /** GET over a connection of its own, so that any worker may get it. */
  pull(path: string, headers?: Record<string, string>): ReturnType<Server['request']>
}

/** What a pair is told. */
export interface PairOptions {
  /** Settings of the mirror. */
  readonly mirror?: Record<string, unknown>
  /** Settings of the server. */
  readonly config?: Record<string, unknown>
  readonly upstream?: FakeUpstreamOptions
  readonly server?: ServerOptions
}

/** For a mirror that is quick to give up: where what is found is found by waiting. */
export const hasty = { idleTimeout: '1s', connectTimeout: '500ms' }

/** The settings of a mirror that waits for long: a slow machine is not a dead upstream. */
export function mirrorOf(upstream: FakeUpstream, settings: Record<string, unknown> = {}) {
  return {
    name: 'docker.io',
    url: upstream.url.origin,
    bareNames: true,
    idleTimeout: '30s',
    connectTimeout: '30s',
    ...settings,
  }
}

/** Starts both; they end with the test. */
export async function startPair(t: Test, options: PairOptions = {}): Promise<Pair> {
  const upstream = await startFakeUpstream(t, options.upstream)
  const server = await startServer(t, {
    ...options.server,
    config: { mirrors: [mirrorOf(upstream, options.mirror)], ...options.config },
  })
  return {
    upstream,
    server,
    pull: (path, headers = {}) => server.request('GET', path, { headers, fresh: true, unchecked: true }),
  }
}
