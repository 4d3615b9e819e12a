import { type Command, parse, say, sharedUsage, words } from './command.js'
import { withPlace } from './store.js'
import { formatBytes, formatJson, formatTable } from './table.js'

/** `boathouse quota` */
export const quota: Command = {
  usage: `Quotas: how many bytes repositories may hold together, and how many they do

  boathouse quota    the quotas that the server last started with, and what is used of each

  --json          answer in JSON, in bytes
${sharedUsage}

The setting quotas says which there are. Of each repository that a pattern matches count the layers and other blobs that
it links, mounted ones too, its manifests, and its unfinished uploads.`,

  async run(args) {
    const { values, positionals } = parse(args, { json: { type: 'boolean' } })
    words(positionals)
    return withPlace(values, async ({ stores }) => {
      const quotas = await stores.quotas.listQuotas()
      if (values.json === true) say(formatJson(quotas))
      else if (quotas.length === 0) say('There are no quotas: the setting quotas makes some.')
      else {
        const rows = quotas.map(({ pattern, limit, used }) => [
          pattern,
          formatBytes(limit),
          formatBytes(used),
          formatBytes(Math.max(0, limit - used)),
        ])
        say(formatTable(['REPOSITORIES', 'QUOTA', 'USED', 'FREE'], rows))
      }
      return 0
    })
  },
}
