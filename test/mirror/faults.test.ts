import { randomBytes } from 'node:crypto'
import t from 'tap'
import { UpstreamError } from '../../src/mirror/upstream.js'
import { parseDigest } from '../../src/oci/digest.js'
import { eventually, within } from '../harness.js'
import { startFakeUpstream } from './fake-upstream.js'
import { faultNamed, faults } from './faults.js'
import { clientOf, digestOf, drain, hasty, latest, repository } from './fixture.js'

/** How a call ended: with the right bytes, with others, without an end, or with a failure. */
type Outcome =
  | 'right'
  | 'other'
  | 'endless'
  | 'not-found'
  | 'denied'
  | 'rate-limited'
  | 'unavailable'
  | 'invalid'
  | 'looped'

/** What must come of a fault: a manifest by digest, the same by tag, and a blob. */
type Expected = readonly [Outcome, Outcome, Outcome]

const all = (outcome: Outcome): Expected => [outcome, outcome, outcome]

/*
 * A blob's bytes are not checked here but by whoever stores them: `other` is what its hash finds. By tag nobody can
 * know that an answer without length and digest was cut off, or that it is a page for people, but who reads it.
 */
const expected: Readonly<Record<string, Expected>> = {
  'wrong bytes': ['invalid', 'invalid', 'other'],
  'other bytes of the same length': ['invalid', 'invalid', 'other'],
  'no bytes': ['invalid', 'invalid', 'other'],
  'a length that is too small': ['invalid', 'invalid', 'other'],
  'a length that is too large': all('unavailable'),
  'a length that is no number': all('invalid'),
  'a length of 2^60': all('unavailable'),
  'two lengths': all('unavailable'),
  'a length and chunks': all('unavailable'),
  'chunks that are cut off': all('unavailable'),
  'chunks that are none': all('invalid'),
  'half of the body, and then its end': ['invalid', 'other', 'other'],
  'a page for people': ['invalid', 'other', 'other'],
  'a body that is compressed': ['invalid', 'invalid', 'other'],
  'the digest of other bytes': ['invalid', 'invalid', 'right'],
  'a digest that is none': ['invalid', 'invalid', 'right'],
  'a reset': all('unavailable'),
  'a reset in the middle': all('unavailable'),
  'no answer, and the end': all('unavailable'),
  'no answer': all('unavailable'),
  'headers without an end': all('unavailable'),
  'a stall in the middle': all('unavailable'),
  'a byte now and then': all('unavailable'),
  'a header byte now and then': all('unavailable'),
  'patience asked for without end': all('unavailable'),
  'headers without a bound': all('invalid'),
  'a body without a bound': ['invalid', 'invalid', 'endless'],
  'something that is not HTTP': all('invalid'),
  'HTTP/0.9': all('invalid'),
  'an upgrade that nobody wanted': all('unavailable'),
  'a status of 99': all('invalid'),
  'another answer behind the answer': all('right'),
  'status 204': all('invalid'),
  'status 206 that was not asked for': all('invalid'),
  'status 304': all('invalid'),
  'status 400': all('invalid'),
  'status 401': all('denied'),
  'status 401 with a challenge of nobody': all('denied'),
  'status 401 with a challenge that is broken': all('denied'),
  'status 403': all('denied'),
  'status 404': all('not-found'),
  'status 410': all('not-found'),
  'status 416': all('invalid'),
  'status 429': all('rate-limited'),
  'status 429 until a date': all('rate-limited'),
  'status 500': all('unavailable'),
  'status 502': all('unavailable'),
  'status 503': all('unavailable'),
  'status 504': all('unavailable'),
  'a redirect to itself': all('invalid'),
  'a redirect to ever new paths': all('invalid'),
  'a redirect to nowhere': all('invalid'),
  'a redirect to a file': all('invalid'),
  'a redirect to a broken URL': all('invalid'),
  'a redirect to the metadata service': all('invalid'),
  ...Object.fromEntries(Array.from({ length: 16 }, (_, n) => [`cut at ${n}/16`, all('unavailable')])),
}

const layer = randomBytes(300_000)
const mostRead = 8 * 1024 * 1024

async function outcomeOf(work: Promise<Outcome>): Promise<Outcome> {
  try {
    return await work
  } catch (error) {
    if (error instanceof UpstreamError) return error.failure
    throw error
  }
}

t.test('every fault has its outcome', async (t) => {
  t.strictSame(Object.keys(faults).sort(), Object.keys(expected).sort())
  t.ok(Object.keys(faults).length >= 60, 'there are many')
})

t.test(
  'R40, S44, S46: each fault ends soon, as what it is, and nothing wrong is taken for right',
  async (t) => {
    const fake = await startFakeUpstream(t)
    const manifest = parseDigest(fake.addImage(repository, latest, [layer]))
    for (const [name, outcomes] of Object.entries(expected)) {
      fake.fault = () => faultNamed(name)
      const client = () => clientOf(t, fake.url, outcomes.includes('unavailable') ? { timeouts: hasty } : {})
      const byDigest = async (): Promise<Outcome> => {
        const { bytes } = await client().getManifest(repository, manifest)
        return digestOf(Buffer.from(bytes)) === manifest ? 'right' : 'other'
      }
      const byTag = async (): Promise<Outcome> => {
        const { digest } = await client().getManifest(repository, latest)
        return digest === manifest ? 'right' : 'other'
      }
      const blob = async (): Promise<Outcome> => {
        const { body } = await client().openBlob(repository, digestOf(layer), 0)
        const chunks: Buffer[] = []
        let length = 0
        for await (const chunk of body) {
          chunks.push(chunk)
          length += chunk.length
          if (length > mostRead) return 'endless'
        }
        return digestOf(Buffer.concat(chunks)) === digestOf(layer) ? 'right' : 'other'
      }
      const ends = Promise.all([byDigest(), byTag(), blob()].map(outcomeOf))
      t.strictSame(await within(10_000, name, ends), outcomes, name)
    }
  },
)

t.test('every fault gives its connection back', async (t) => {
  const fake = await startFakeUpstream(t)
  const manifest = parseDigest(fake.addImage(repository, latest, [layer]))
  const obeyed: readonly Outcome[] = ['rate-limited']
  for (const [name, [outcome]] of Object.entries(expected)) {
    if (obeyed.includes(outcome)) continue
    const timeouts = { connect: 1500, headers: 1500, idle: 1500, answer: 1500 } // some are only found by waiting
    const client = clientOf(t, fake.url, { maxConnections: 1, timeouts })
    fake.fault = () => faultNamed(name)
    await outcomeOf(client.getManifest(repository, latest).then(() => 'right' as const))
    const blob = await client.openBlob(repository, digestOf(layer), 0).catch(() => undefined)
    blob?.body.on('error', () => undefined).destroy()
    fake.fault = () => undefined
    const next = await within(10_000, name, client.getManifest(repository, latest))
    t.equal(next.digest, manifest, name)
    t.equal(await within(10_000, name, client.headBlob(repository, digestOf(layer))), layer.length)
    const whole = await within(10_000, name, client.openBlob(repository, digestOf(layer), 0))
    t.ok((await drain(whole)).equals(layer))
  }
  await eventually('no connection is left', () => fake.openConnections === 0)
})
