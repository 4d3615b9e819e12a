import { statSync } from 'node:fs'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import t from 'tap'
import { digestOf } from '../../src/oci/digest.js'
import { parseRepositoryName } from '../../src/oci/reference.js'
import { openSqliteMetadataStore, prepareSqlite } from '../../storage/sqlite-metadata-store.js'
import { scratchDir } from '../harness.js'

const mebibyte = 1024 * 1024
const repository = parseRepositoryName('team/app')

t.test('R54: the log that a long reader made grow is cut back when the reader has ended', async (t) => {
  const path = join(scratchDir(t), 'boathouse.db')
  prepareSqlite(path)
  const store = await openSqliteMetadataStore({ path, onFatal: (error) => t.fail(error) })
  t.teardown(() => store.close())
  const put = async (n: number) => {
    const bytes = Buffer.alloc(4 * mebibyte, n)
    const manifest = { repository, digest: digestOf(bytes), bytes, mediaType: 'x', children: [], tags: [] }
    const plain = {
      subject: undefined,
      artifactType: undefined,
      annotations: undefined,
      condition: undefined,
    }
    await store.putManifest({ ...manifest, ...plain, sparse: false, immutable: [], now: 1 })
  }
  const logSize = () => statSync(`${path}-wal`).size

  const reader = new Database(path, { readonly: true })
  reader.exec('BEGIN')
  reader.pragma('schema_version') // from here on it sees the index as it is now
  for (let n = 0; n < 25; n++) await put(n)
  const grown = logSize()
  t.ok(grown > 90 * mebibyte, 'while somebody reads, the log keeps all that was written')
  t.ok(grown < 256 * mebibyte, 'and not much more than that')

  reader.close()
  for (let n = 25; n < 29; n++) await put(n)
  t.ok(logSize() <= 64 * mebibyte, `afterwards it is cut to 64 MiB (${logSize()} bytes)`)
})
