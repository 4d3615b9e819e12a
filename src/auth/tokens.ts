import { createPublicKey, type KeyObject, randomUUID } from 'node:crypto'
import { setTimeout as delay } from 'node:timers/promises'
import { calculateJwkThumbprint, decodeProtectedHeader, exportJWK, jwtVerify, SignJWT } from 'jose'
import { z } from 'zod'
import { isRepositoryName, type RepositoryName } from '../oci/reference.js'
import { actions } from './grants.js'
import { LeastRecentlyUsed } from './lru.js'
import { registryScopeNames, type Scope } from './scopes.js'

/** Seconds by which the clocks of two servers may differ (reliability S06). */
const leeway = 60

/** Verified tokens that are remembered. */
const mostTokens = 10_000

/** Longest token in characters; longer text is refused before it is read (protocol JW-05). */
const longestToken = 8192

/** Base64url without padding: one token has one text (reliability S02). */
const tokenForm = /^[\w-]+\.[\w-]+\.[\w-]+$/

/** Where the keys come from. */
export interface KeySource {
  /** Newest first: it signs. */
  load(): Promise<readonly KeyObject[]>
  /** Changes with the keys. */
  state(): Promise<string>
}

/** What a token says. */
export interface Claims {
  /** The user; '' is anonymous. */
  readonly sub: string
  /** The user's epoch when it was issued. */
  readonly epoch: number
  /** The access token that it was got with, if any. */
  readonly accessToken: string | undefined
  readonly scopes: readonly Scope[]
  /** Seconds since 1970; the clock that issued it may differ from ours: see {@link isCurrent}. */
  readonly notBefore: number
  readonly expiresAt: number
}

/**
 * Whether claims hold by the clock now. Their beginning counts too, also when they were checked before: after a clock
 * has gone back, a token that is from the future would be good for ever so long (reliability S06).
 */
export function isCurrent(claims: Pick<Claims, 'notBefore' | 'expiresAt'>): boolean {
  const now = Date.now() / 1000
  return claims.notBefore - leeway <= now && now <= claims.expiresAt + leeway
}

const scopeSchema = z.union([
  z.object({
    type: z.literal('repository'),
    name: z.custom<RepositoryName>((name) => typeof name === 'string' && isRepositoryName(name)),
    actions: z.array(z.enum(actions)),
  }),
  z.object({
    type: z.literal('registry'),
    name: z.enum(registryScopeNames),
    actions: z.tuple([z.literal('*')]),
  }),
])
const payloadSchema = z.object({
  sub: z.string(),
  exp: z.number(),
  nbf: z.number(),
  iat: z.number(),
  jti: z.string(),
  epoch: z.number(),
  accessToken: z.string().optional(),
  access: z.array(scopeSchema),
})

interface KeyRing {
  readonly state: string
  readonly signing: { readonly id: string; readonly key: KeyObject }
  readonly verifying: ReadonlyMap<string, KeyObject>
}

/** Milliseconds between two looks for new keys, and the least for a token whose key is unknown. */
const lookInterval = 1000
const shortestLook = 50

/** Issues and verifies bearer tokens: JWTs signed with Ed25519 (protocol 9.5). */
export class Tokens {
  readonly #source: KeySource
  readonly #service: string
  readonly #lifetime: number
  readonly #verified = new LeastRecentlyUsed<string, Claims>(mostTokens)
  #ring: Promise<KeyRing> | undefined
  #lookedAt = Number.NEGATIVE_INFINITY

  /**
   * @param service the name that tokens are for: another server's are refused
   * @param lifetime seconds
   */
  constructor(source: KeySource, service: string, lifetime: number) {
    this.#source = source
    this.#service = service
    this.#lifetime = lifetime
  }

  /** Seconds for which a token is good. */
  get lifetime(): number {
    return this.#lifetime
  }

  get service(): string {
    return this.#service
  }

  /** Reads the keys before anybody asks: one that is replaced in a moment must be known to have been there. */
  async prepare(): Promise<void> {
    await this.#keys()
  }

  /** Seconds for which a token is good that must not outlive this time, in milliseconds since 1970; undefined is never. */
  lifetimeUntil(end: number | undefined): number {
    if (end === undefined) return this.#lifetime
    return Math.max(1, Math.min(this.#lifetime, Math.floor((end - Date.now()) / 1000)))
  }

  /** Makes a token. @param lifetime seconds */
  async issue(claims: Omit<Claims, 'notBefore' | 'expiresAt'>, lifetime = this.#lifetime): Promise<string> {
    const { signing } = await this.#keys()
    const now = Math.floor(Date.now() / 1000)
    return new SignJWT({
      epoch: claims.epoch,
      access: claims.scopes,
      ...(claims.accessToken === undefined ? {} : { accessToken: claims.accessToken }),
    })
      .setProtectedHeader({ alg: 'EdDSA', typ: 'JWT', kid: signing.id })
      .setIssuer(this.#service)
      .setAudience(this.#service)
      .setSubject(claims.sub)
      .setIssuedAt(now)
      .setNotBefore(now - 10)
      .setExpirationTime(now + lifetime)
      .setJti(randomUUID())
      .sign(signing.key)
  }

  /**
   * Checks a token; one that was checked before is only compared with the clock.
   * @returns undefined for every token that this server would not issue now
   */
  async verify(token: string): Promise<Claims | undefined> {
    const claims = this.#verified.get(token) ?? (await this.#verifyNew(token))
    return claims !== undefined && isCurrent(claims) ? claims : undefined
  }

  async #verifyNew(token: string): Promise<Claims | undefined> {
    if (token.length > longestToken || !tokenForm.test(token)) return undefined
    const ring = await this.#keysFor(token)
    try {
      const { payload, protectedHeader } = await jwtVerify(
        token,
        ({ kid }) => {
          // Only our own keys, by their id: nothing else in the header says what to trust (reliability S01).
          const key = ring.verifying.get(kid ?? '')
          if (key === undefined) throw new Error('unknown key')
          return key
        },
        {
          algorithms: ['EdDSA'],
          issuer: this.#service,
          audience: this.#service,
          clockTolerance: leeway,
          typ: 'JWT',
        },
      )
      if (protectedHeader.crit !== undefined || typeof payload.aud !== 'string') return undefined
      const claims = toClaims(payloadSchema.parse(payload))
      this.#verified.set(token, claims)
      return claims
    } catch {
      return undefined // whatever is wrong with it, it is not ours
    }
  }

  /** The keys; another worker may have taken up a new one a moment earlier than this. */
  async #keysFor(token: string): Promise<KeyRing> {
    const ring = await this.#keys()
    if (ring.verifying.has(keyIdOf(token))) return ring
    const lookedAt = this.#lookedAt
    const wait = lookedAt + shortestLook - performance.now()
    if (wait > 0) await delay(wait)
    // Whoever looked meanwhile did it for all that wait. A timer may fire a little early: it does not count again.
    if (this.#lookedAt === lookedAt) this.#lookedAt = Number.NEGATIVE_INFINITY
    return this.#keys()
  }

  /** The keys, read again when somebody has rotated them. */
  async #keys(): Promise<KeyRing> {
    const now = performance.now()
    if (this.#ring === undefined || now - this.#lookedAt > lookInterval) {
      this.#lookedAt = now
      const ring = this.#refresh(this.#ring)
      this.#ring = ring
      ring.catch(() => {
        if (this.#ring === ring) this.#ring = undefined
      })
    }
    return this.#ring
  }

  async #refresh(old: Promise<KeyRing> | undefined): Promise<KeyRing> {
    const state = await this.#source.state()
    const current = await old?.catch(() => undefined)
    if (current?.state === state) return current
    const keys = await this.#source.load()
    const named = await Promise.all(keys.map(async (key) => ({ id: await keyId(key), key })))
    const [signing] = named
    if (signing === undefined) throw new Error('there is no signing key')
    return { state, signing, verifying: new Map(named.map(({ id, key }) => [id, createPublicKey(key)])) }
  }
}

/** The key that a token says it is signed with; '' when it does not say. */
function keyIdOf(token: string): string {
  try {
    return decodeProtectedHeader(token).kid ?? ''
  } catch {
    return ''
  }
}

/** RFC 7638: the thumbprint of the public key. */
async function keyId(key: KeyObject): Promise<string> {
  return calculateJwkThumbprint(await exportJWK(createPublicKey(key)))
}

function toClaims(payload: z.output<typeof payloadSchema>): Claims {
  return {
    sub: payload.sub,
    epoch: payload.epoch,
    accessToken: payload.accessToken,
    scopes: payload.access,
    notBefore: payload.nbf,
    expiresAt: payload.exp,
  }
}
