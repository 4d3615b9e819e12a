import { readFile } from 'node:fs/promises'
import type { UpstreamCredentials } from './upstream-auth.js'

/** Largest file with credentials, in characters. */
const largestFile = 1024 * 1024

/** Where the credentials for an upstream are kept. */
export interface CredentialSource {
  readonly urls: readonly string[]
  readonly username: string | undefined
  readonly password: string | undefined
  /** Path of a file with the password on its only line. */
  readonly passwordFile: string | undefined
  /** Path of a Docker `config.json`. */
  readonly dockerConfig: string | undefined
}

/**
 * A reader of the credentials, which may change while the server runs; undefined when there are none to read. It
 * throws an Error, without secrets, when a file cannot be read.
 */
export function readCredentials(
  source: CredentialSource,
): (() => Promise<UpstreamCredentials | undefined>) | undefined {
  const { username = '', password, passwordFile, dockerConfig } = source
  if (dockerConfig !== undefined) return () => fromDocker(dockerConfig, source.urls)
  if (password !== undefined) return async () => ({ username, password })
  if (passwordFile === undefined) return undefined
  return async () => ({ username, password: (await readSmall(passwordFile)).replace(/\r?\n$/, '') })
}

async function readSmall(path: string): Promise<string> {
  const text = await readFile(path, 'utf8')
  if (text.length > largestFile) throw new Error(`${path} is too large`)
  return text
}

/** `auths` of a config.json: the host, written with or without a scheme and a path, and base64 of `user:password`. */
async function fromDocker(path: string, urls: readonly string[]): Promise<UpstreamCredentials | undefined> {
  let auths: unknown
  try {
    auths = (JSON.parse(await readSmall(path)) as { auths?: unknown }).auths
  } catch {
    throw new Error(`${path} cannot be read as a config.json of Docker`)
  }
  if (typeof auths !== 'object' || auths === null) return undefined
  const wanted = new Set(urls.flatMap((url) => hostsOf(new URL(url).host)))
  for (const [key, entry] of Object.entries(auths)) {
    if (wanted.has(key.replace(/^https?:\/\//, '').split('/', 1)[0] ?? '')) return toCredentials(entry)
  }
  return undefined
}

/** Docker Hub's credentials stand under the name that it had first. */
function hostsOf(host: string): string[] {
  return host === 'registry-1.docker.io' ? [host, 'index.docker.io', 'docker.io'] : [host]
}

function toCredentials(entry: unknown): UpstreamCredentials | undefined {
  if (typeof entry !== 'object' || entry === null || !('auth' in entry) || typeof entry.auth !== 'string') {
    return undefined
  }
  const text = Buffer.from(entry.auth, 'base64').toString('utf8')
  const colon = text.indexOf(':')
  return colon < 0 ? undefined : { username: text.slice(0, colon), password: text.slice(colon + 1) }
}
