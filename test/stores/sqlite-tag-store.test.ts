import { join } from 'node:path'
import t from 'tap'
import { openSqliteStores, prepareSqlite } from '../../storage/sqlite-metadata-store.js'
import { scratchDir } from '../harness.js'
import { testTagStore } from './tag-store-suite.js'

testTagStore(t, async (t) => {
  const path = join(scratchDir(t), 'boathouse.db')
  prepareSqlite(path)
  return {
    async open() {
      const { tags, metadata, collection } = await openSqliteStores({
        path,
        onFatal: (error) => t.fail(error),
      })
      return { tags, metadata, collection, close: () => metadata.close() }
    },
  }
})
