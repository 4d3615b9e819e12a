import { settingsHelp } from '../../config/help.js'
import { DataFolderInUseError } from '../../storage/data-folder.js'
import { IndexDamagedError } from '../../storage/errors.js'
import { NewerSchemaError } from '../../storage/migrations.js'
import { type Command, parseExactly, Refusal, words } from './command.js'
import { loadSettings } from './own-name.js'
import { serve } from './serve.js'
import { describeStartFailure, StartError } from './start-failure.js'

/** `boathouse serve` */
export const runServer: Command = {
  usage: `Run the registry until SIGTERM or SIGINT, or until its terminal is closed

  boathouse serve [--config FILE] [--listen HOST:PORT] [--data DIR]

Every setting can stand in the YAML file of --config, and in a variable; flags win over variables, variables
over the file.

${settingsHelp()}`,

  async run(args) {
    const { values, positionals } = parseExactly(args, {
      config: { type: 'string' },
      listen: { type: 'string' },
      data: { type: 'string' },
    })
    words(positionals)
    const config = await loadSettings(values)
    try {
      return await serve(config)
    } catch (error) {
      const isExpected =
        error instanceof StartError ||
        error instanceof IndexDamagedError ||
        error instanceof DataFolderInUseError ||
        error instanceof NewerSchemaError
      throw new Refusal(isExpected ? error.message : describeStartFailure(error, config))
    }
  },
}
