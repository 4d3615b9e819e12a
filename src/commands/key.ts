import { errorCode } from '../../storage/errors.js'
import { commandGroup, parse, Refusal, say, sharedUsage, words } from './command.js'
import { withPlace } from './store.js'
import { formatTable, formatTime } from './table.js'

const usage = `Signing keys: what makes the logins of this server

  boathouse key rotate   make a new key; logins signed with the old one are good until they end
  boathouse key list

${sharedUsage}`

/** `boathouse key …` */
export const key = commandGroup('key', usage, { rotate, list })

async function rotate(args: readonly string[]): Promise<number> {
  const { values, positionals } = parse(args, {})
  words(positionals)
  return withPlace(values, async ({ config, keys, audit }) => {
    const { keyFile } = config.tokens
    if (keyFile !== undefined) {
      throw new Refusal(`The key in ${keyFile} signs, as tokens.keyFile says: put another key there instead.`)
    }
    await guarded(config.data, async () => {
      if ((await keys.load()).length === 0) await keys.prepare(Date.now())
      else await keys.add(Date.now())
    })
    audit('key rotated', {})
    say('Made a new key: it signs from now on. Logins signed with the old one are good until they end.')
    return 0
  })
}

async function list(args: readonly string[]): Promise<number> {
  const { values, positionals } = parse(args, {})
  words(positionals)
  return withPlace(values, async ({ config, keys }) => {
    const { keyFile } = config.tokens
    const made = await guarded(config.data, () => keys.load())
    const rows = made.map(({ createdAt }, index) => [
      formatTime(createdAt, ''),
      index === 0 && keyFile === undefined ? 'signs' : 'verifies what it signed',
    ])
    if (keyFile !== undefined) rows.unshift([keyFile, 'signs'])
    say(
      rows.length === 0
        ? 'There are no keys: the server makes one when it first needs it.'
        : formatTable(['KEY', 'USE'], rows),
    )
    return 0
  })
}

/** Keys are files of their own, which may be another user's. */
async function guarded<T>(root: string, task: () => Promise<T>): Promise<T> {
  try {
    return await task()
  } catch (error) {
    if (errorCode(error) === 'EACCES' || errorCode(error) === 'EPERM') {
      throw new Refusal(
        `This user may not use the keys in ${root}: run the command as the user that the server runs as.`,
      )
    }
    throw new Refusal(
      `The keys in ${root} cannot be used: ${error instanceof Error ? error.message : error}.`,
    )
  }
}
