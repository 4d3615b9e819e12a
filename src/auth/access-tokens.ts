import { createHash, randomBytes, randomUUID, timingSafeEqual } from 'node:crypto'

/** Begins every access token, so that people and scanners know one when they see it. */
const prefix = 'bht_'

/** A new access token: shown once, kept as a hash. */
export interface NewAccessToken {
  readonly id: string
  /** What the machine uses as its password. */
  readonly text: string
  readonly secretHash: string
}

/** Makes an access token with 256 random bits. */
export function createAccessToken(): NewAccessToken {
  const id = randomUUID().replaceAll('-', '')
  const secret = randomBytes(32).toString('base64url')
  return { id, text: `${prefix}${id}_${secret}`, secretHash: hashSecret(secret) }
}

/** Takes an access token apart; undefined for text that is none, such as a password. */
export function parseAccessToken(text: string): { readonly id: string; readonly secret: string } | undefined {
  const [, id, secret] = /^bht_([0-9a-f]{32})_([\w-]{43})$/.exec(text.slice(0, 100)) ?? []
  return id === undefined || secret === undefined || text.length > 100 ? undefined : { id, secret }
}

/** Whether the secret is the one that was hashed. */
export function isSecretOf(secret: string, secretHash: string): boolean {
  const actual = Buffer.from(hashSecret(secret))
  const expected = Buffer.from(secretHash)
  return actual.length === expected.length && timingSafeEqual(actual, expected)
}

function hashSecret(secret: string): string {
  return createHash('sha256').update(secret).digest('hex')
}
