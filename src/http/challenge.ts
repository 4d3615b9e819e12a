import type { ChallengeError } from '../auth/access.js'

/** Path of the token endpoint. */
export const tokenPath = '/auth/token'

/**
 * The WWW-Authenticate header: one scheme, one line (protocol AU-01 … AU-08). Every client reads it in its own
 * way; this form suits all of them.
 * @param realm the token endpoint's URL as the client reaches it
 * @param service the name that tokens are for
 */
export function challengeHeader(error: ChallengeError, realm: string, service: string): string {
  const parts = [`realm="${realm}"`, `service="${service}"`]
  if (error.scope !== undefined) parts.push(`scope="${error.scope}"`)
  if (error.problem !== undefined) parts.push(`error="${error.problem}"`)
  return `Bearer ${parts.join(',')}`
}
