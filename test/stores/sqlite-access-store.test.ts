import { join } from 'node:path'
import t from 'tap'
import { openSqliteStores, prepareSqlite } from '../../storage/sqlite-metadata-store.js'
import { scratchDir } from '../harness.js'
import { testAccessStore } from './access-store-suite.js'

testAccessStore(t, async (t) => {
  const path = join(scratchDir(t), 'boathouse.db')
  prepareSqlite(path)
  return {
    async open() {
      const { access, metadata } = await openSqliteStores({ path, onFatal: (error) => t.fail(error) })
      return { access, close: () => metadata.close() }
    },
  }
})
