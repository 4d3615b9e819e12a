import t from 'tap'
import { RegistryError } from '../src/oci/errors.js'
import { ManifestParser } from '../src/registry/manifest-parser.js'

t.test('S97: who brings too many large manifests at once is told to come again (429)', async (t) => {
  const parser = new ManifestParser()
  t.teardown(() => parser.close())
  const mediaType = 'application/vnd.oci.image.index.v1+json'
  const annotations = { text: 'x'.repeat(70_000) }
  const bytes = Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType, manifests: [], annotations }))
  const parse = () =>
    parser.parse(bytes, mediaType).then(
      () => 'parsed',
      (error: unknown) => (error instanceof RegistryError ? error : Promise.reject(error)),
    )
  const results = await Promise.all(Array.from({ length: 100 }, parse))
  const refused = results.filter((result) => result !== 'parsed')
  t.ok(refused.length > 0 && refused.length < 100, `${refused.length} of 100 are refused`)
  for (const error of refused) t.match(error, { kind: 'TOOMANYREQUESTS', status: 429, retryAfter: 1 })
  t.equal(await parse(), 'parsed', 'the next one is parsed again')
})
