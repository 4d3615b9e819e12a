import * as http from 'node:http'
import * as https from 'node:https'
import { isIPv6 } from 'node:net'
import { loadConfigFromProcess } from '../../config/load.js'
import type { Config } from '../../config/schema.js'
import { type Command, parseExactly, Refusal, say, words } from './command.js'

/** Milliseconds that an answer may take. */
const patience = 4000

/** `boathouse health` */
export const health: Command = {
  usage: `Ask the server on this machine whether it is alive, for a container's health check

  boathouse health [--config FILE] [--listen HOST:PORT]

It finds the server by the same settings as serve does, and asks its /healthz, with TLS without looking at the
certificate. Exit code 0: it answers; 1: it does not.`,

  async run(args) {
    const { values, positionals } = parseExactly(args, {
      config: { type: 'string' },
      listen: { type: 'string' },
    })
    words(positionals)
    const url = addressOf(await loadConfigFromProcess(values))
    const status = await ask(url).catch((error: Error & { code?: string }) => {
      throw new Refusal(`${url} does not answer (${error.code ?? error.message}).`)
    })
    if (status !== 200) throw new Refusal(`${url} answers with status ${status}.`)
    say('alive')
    return 0
  },
}

/** Where a process on the same machine reaches the server. @throws Refusal when the settings do not tell */
function addressOf({ listen, tls }: Config): string {
  const { host, port } = listen
  if (port === 0) throw new Refusal('listen leaves the port to the system, so nobody knows it: name one.')
  const reachable = host === '0.0.0.0' ? '127.0.0.1' : host === '::' ? '::1' : host
  const written = isIPv6(reachable) ? `[${reachable}]` : reachable
  return `${tls === undefined ? 'http' : 'https'}://${written}:${port}/healthz`
}

/** The status of the answer. @throws the system's error, or one with a sentence */
function ask(url: string): Promise<number | undefined> {
  return new Promise((resolve, reject) => {
    // The question is whether the server answers; the certificate is made for the name that clients use.
    const options = { rejectUnauthorized: false, agent: false, timeout: patience } as const
    const request = url.startsWith('https:') ? https.get(url, options) : http.get(url, options)
    request.on('timeout', () => request.destroy(new Error(`silent for ${patience / 1000} s`)))
    request.on('error', reject)
    request.on('response', (response) => {
      response.resume()
      resolve(response.statusCode)
    })
  })
}
